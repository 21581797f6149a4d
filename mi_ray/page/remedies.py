"""What to do where a check of a cell fails, in a sentence that stands beside its criterion.

The criteria are those of `mi_ray.study.checks`; docs/checks.md has the whole of it, with the literature.
"""

REMEDIES = {
    "in_ball": "The attack leaves its threat model. Mend its projection; the number means nothing before that.",
    "in_box": "Let the attack clip its images (`clip: true` for the averaged attack).",
    "logits_not_probabilities": "Take the softmax out of the network: through a second one its gradients are too small.",
    "randomness_declared": "Put the network into evaluation mode. Randomness belongs into the defense, where attacks "
    "average over it.",
    "budget": "The attack is confined to a smaller ball. Look for a mistake in the units of ε or of the step size.",
    "gradients_not_zero": "The gradient is masked. Use `apgd` with its difference-of-logits loss, `square`, or attack a "
    "smooth version.",
    "pushed_back": "The attack leaves the model's own label. Let it leave the true one (`attack_labels: true`).",
    "oblivious_not_stronger": "The adaptive attack is broken or too short. Lengthen it, or take `cascade`, and quote neither "
    "it nor the worst case before that.",
    "peers": "Quote the attack that is named here, or the worst case.",
    "reference": "The attack is weaker than 20 plain steps, or than 99 rotations and shifts. Mend it, or take `pgd`, `eot_pgd`, "
    "`cascade` or `spatial: grid`.",
    "headway": "The attack has hardly moved these points. Take longer or more steps, or a less noisy gradient (a larger `eot`).",
    "elsewhere": "The attack is strong on the checked points alone. Run `checks: full`, and do not quote it before that.",
    "fixed_randomness": "Nothing fails by it. A large gap says that the gain is that nobody knows the defense's draws.",
    "more_steps": "Run it with more steps; what is stored is continued, so that only the further ones cost anything.",
    "more_restarts": "Run it with more restarts, or take `cascade`.",
    "more_eot": "Raise `eot`, so that the gradient is less a matter of chance.",
    "epsilon_zero": "Something changes images on their way: preprocessing, shifted points, or a rounding to 8 bits.",
    "monotone_in_epsilon": "The attack is stuck. Start it at random, and give it restarts.",
    "large_epsilon": "Any image can be turned grey there, so the gradient lies. Use `square`, or attack a smooth version.",
    "random_noise_not_stronger": "Noise is the better attack. Mend this one.",
    "binarization": "The attack does not find what is there. Look for steps that are too short, a smaller ball, or masked "
    "gradients; `apgd` with its difference-of-logits loss or `square` tells which.",
    "black_box_not_stronger": "The gradients mislead. Use `square`, or `apgd` with its difference-of-logits loss.",
}
