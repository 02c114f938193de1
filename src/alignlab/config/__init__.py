"""From a composed config to checked values and objects."""
