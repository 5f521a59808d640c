"""How good a detector is: ranking, episodes, and the controls that it has to beat."""
