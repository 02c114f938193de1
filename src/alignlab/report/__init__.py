"""Reports over several runs: what differs between them, what came out, and pages that show it."""
