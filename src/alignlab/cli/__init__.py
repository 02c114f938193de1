"""The verbs: `alignlab VERB …`, one file each."""
