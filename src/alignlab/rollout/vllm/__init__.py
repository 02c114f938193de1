"""Completions drawn by vLLM servers, which are processes of their own with an environment of their own."""
