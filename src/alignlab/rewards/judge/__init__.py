"""A language model behind an OpenAI-compatible server as a judge: it scores completions, or compares two of them.

1. Texts are shown to the judge between tags that do not occur in them (``rubric.enclosed``), so a completion can
   neither end its part of the message nor pass for the instructions around it. It may still ask for a good score.
2. A verdict is read strictly (``verdicts``), and what cannot be read is counted and never guessed.
"""
