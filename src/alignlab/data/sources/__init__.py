"""Where rows come from: files, the hub, a registry, a mixture, generated problems."""
