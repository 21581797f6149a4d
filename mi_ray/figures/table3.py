"""The paper's Table 3 (CIFAR-100): our values with intervals and verdicts, and the paper's beside them."""

from mi_ray.figures.paper_table import Paper, published, settings, write
from mi_ray.store.blocks import Store

# Clean; untargeted PGD-10, 50, 200; targeted PGD-10, 50, 200.
PAPER = Paper(
    "table3",
    "the paper's Table 3 (CIFAR-100, ResNet-50)",
    published("""
    mixup           none             74.2   5.5   5.3   5.2  <=1   <=1   <=1
    mixup           gaussian_noise   65.0   5.5   5.3   5.3  10.0   4.3   4.1
    mixup           random_rotation  66.2   7.8   6.7   6.3  21.4  15.5  15.2
    mixup           random_pad       66.3   9.6   7.6   7.4  30.2  22.5  22.3
    mixup           random_resize    66.1  13.1  10.8  10.5  33.3  26.3  26.1
    mixup           mi_ol            68.8  12.6   9.4   9.1  37.0  29.0  28.7
    mixup           mi_combined      67.0  14.8  11.7  11.3  31.4  26.9  26.7
    interpolated_at none             64.7  26.6  24.1  24.0  52.0  50.1  49.8
    interpolated_at gaussian_noise   60.4  32.6  31.6  31.4  50.1  50.0  49.6
    interpolated_at random_rotation  62.6  34.5  32.4  32.1  51.0  49.9  49.7
    interpolated_at random_pad       62.1  42.2  41.5  41.3  57.1  56.3  55.8
    interpolated_at random_resize    61.5  36.2  33.7  33.3  53.8  52.4  52.2
    interpolated_at mi_ol            62.0  43.8  42.8  42.5  58.1  56.7  56.5
    """),
    # Table 5, whose sigma is on a [-1, 1] scale, half of it here.
    settings("""
    mixup           gaussian_noise   {"sigma": 0.0125}
    mixup           random_rotation  {"degrees": 20}
    mixup           random_pad       {"crop": [18, 26]}
    mixup           random_resize    {"crop": [24, 32]}
    mixup           mi_ol            {"lam": 0.5}
    mixup           mi_combined      {"lam_pl": 0.5, "lam_ol": 0.4, "threshold": 0.2}
    interpolated_at gaussian_noise   {"sigma": 0.03}
    interpolated_at random_rotation  {"degrees": 20}
    interpolated_at random_pad       {"crop": [22, 30]}
    interpolated_at random_resize    {"crop": [24, 32]}
    interpolated_at mi_ol            {"lam": 0.6}
    """),
)


def make(store: Store, study: str) -> list[str]:
    """Write a study's table beside the paper's Table 3, as Markdown, CSV and LaTeX."""
    return write(PAPER, store, study)
