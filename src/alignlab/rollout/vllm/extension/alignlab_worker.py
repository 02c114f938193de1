"""Extension of vLLM's workers, imported by the server's Python, where alignlab is not installed.

On a CPU, vLLM computes with a packed copy of the vocabulary head. Reloading weights repacks the layers whose tensors
are in the files, but not a head tied to the embedding (vLLM 0.32), which would keep its initial weights.
"""


class PackTiedHead:
    """Mixin of the worker class (``--worker-extension-cls``), called by name through ``/collective_rpc``."""

    def pack_tied_head(self) -> None:
        """Repack every vocabulary head from its current weights."""
        for layer in self.model_runner.get_model().modules():
            if type(layer).__name__ == "ParallelLMHead" and hasattr(layer, "cpu_linear"):
                layer.quant_method.process_weights_after_loading(layer)
