"""Sampling with vLLM servers, which run as separate processes in a separate Python environment."""
