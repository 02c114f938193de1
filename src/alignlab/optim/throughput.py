"""Model FLOPs utilisation: the achieved share of the device's peak FLOP/s."""

import torch

# Dense bf16 FLOP/s by a word of the device's name, from the vendors' data sheets (SXM if there are several variants).
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def peak_flops() -> float | None:
    """Peak of one device in FLOP/s, or ``None`` if it is unknown (for example on a CPU)."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for word, peak in PEAK_FLOPS.items() if word in name), None)


def mfu(num_parameters: int, tokens_per_second: float, num_ranks: int) -> float | None:
    """Utilisation with 6 FLOPs per parameter and token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).

    Args:
        num_parameters: Number of parameters in matrix products.
        tokens_per_second: Tokens over all ranks.
        num_ranks: Number of devices.

    Returns:
        In 0…1; ``None`` if the peak of the device is unknown.
    """
    peak = peak_flops()
    return peak and 6 * num_parameters * tokens_per_second / (peak * num_ranks)
