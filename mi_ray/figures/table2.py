"""The paper's Table 2 (CIFAR-10): our values with intervals and verdicts, and the paper's beside them."""

from mi_ray.figures.paper_table import Paper, published, settings, write
from mi_ray.store.blocks import Store

# Clean; untargeted PGD-10, 50, 200; targeted PGD-10, 50, 200.
PAPER = Paper(
    "table2",
    "the paper's Table 2 (CIFAR-10, ResNet-50)",
    published("""
    mixup           none             93.8   3.6   3.2   3.1  <=1   <=1   <=1
    mixup           gaussian_noise   84.4  13.5   9.6   8.8  37.7  28.6  27.9
    mixup           random_rotation  82.0  21.8  18.7  18.2  38.9  32.5  26.5
    mixup           random_pad       82.1  23.0  19.6  19.1  38.4  31.1  25.2
    mixup           random_resize    83.3  31.2  28.8  28.3  57.8  49.1  48.9
    erm             mi_ol            81.6   7.4   6.4   6.1  33.0  26.7  23.2
    mixup           mi_ol            83.9  26.1  18.8  18.3  55.6  51.2  50.8
    mixup           mi_combined      82.9  33.7  31.0  30.7  56.1  49.7  49.4
    interpolated_at none             89.7  46.7  43.5  42.5  65.6  62.5  61.9
    interpolated_at gaussian_noise   84.7  55.6  53.7  53.5  70.1  69.1  69.0
    interpolated_at random_rotation  83.4  57.8  56.7  55.9  69.8  68.2  67.4
    interpolated_at random_pad       82.1  59.7  58.4  57.9  71.1  69.7  69.3
    interpolated_at random_resize    83.9  60.9  60.7  60.3  73.2  72.1  71.6
    at              mi_ol            81.2  56.2  55.8  55.1  67.7  67.2  66.4
    interpolated_at mi_ol            84.2  64.5  63.8  63.3  75.3  74.7  74.5
    """),
    # Table 4, whose sigma is on a [-1, 1] scale, half of it here.
    settings("""
    mixup           gaussian_noise   {"sigma": 0.02}
    mixup           random_rotation  {"degrees": 40}
    mixup           random_pad       {"crop": [16, 24]}
    mixup           random_resize    {"crop": [22, 30]}
    erm             mi_ol            {"lam": 0.6}
    mixup           mi_ol            {"lam": 0.5}
    mixup           mi_combined      {"lam_pl": 0.5, "lam_ol": 0.4, "threshold": 0.2}
    interpolated_at gaussian_noise   {"sigma": 0.0375}
    interpolated_at random_rotation  {"degrees": 30}
    interpolated_at random_pad       {"crop": [20, 28]}
    interpolated_at random_resize    {"crop": [20, 28]}
    at              mi_ol            {"lam": 0.8}
    interpolated_at mi_ol            {"lam": 0.6}
    """),
)


def make(store: Store, study: str) -> list[str]:
    """Write a study's table beside the paper's Table 2, as Markdown, CSV and LaTeX."""
    return write(PAPER, store, study)
