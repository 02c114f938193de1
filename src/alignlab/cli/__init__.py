"""The command line ``alignlab VERB …``, with one module per verb."""
