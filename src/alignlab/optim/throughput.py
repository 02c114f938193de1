"""Model FLOPs utilisation: what share of the device's arithmetic the run uses."""

import torch

# Dense bf16 FLOP/s by a word of the device's name, from the vendors' data sheets (SXM where there are several).
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def peak_flops() -> float | None:
    """Peak of one device in FLOP/s, or ``None`` where it is not known (a CPU, say)."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for word, peak in PEAK_FLOPS.items() if word in name), None)


def mfu(num_parameters: int, tokens_per_second: float, num_ranks: int) -> float | None:
    """Utilisation by the convention of 6 FLOPs per parameter and token (Kaplan et al. 2020, arXiv 2001.08361, 2.1).

    Args:
        num_parameters: Parameters in matrix products.
        tokens_per_second: Over all ranks.
        num_ranks: Devices.
    """
    peak = peak_flops()
    return peak and 6 * num_parameters * tokens_per_second / (peak * num_ranks)
