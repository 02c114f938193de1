"""What vLLM's workers must do besides; imported by the server's own Python, where alignlab is not installed.

On a CPU vLLM computes with a packed copy of the vocabulary head. Reloading weights packs all layers anew whose tensors
stand in the files, but not a head tied to the embedding (vLLM 0.32), which would go on with its first weights.
"""


class PackTiedHead:
    """Mixed into the worker class by ``--worker-extension-cls``; called by name through ``/collective_rpc``."""

    def pack_tied_head(self) -> None:
        """Pack every vocabulary head anew from its weights as they are now."""
        for layer in self.model_runner.get_model().modules():
            if type(layer).__name__ == "ParallelLMHead" and hasattr(layer, "cpu_linear"):
                layer.quant_method.process_weights_after_loading(layer)
