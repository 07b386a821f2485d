"""What the models, a request and a schedule are: pure data and arithmetic, standard library only."""
