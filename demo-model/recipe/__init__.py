"""How the demo checkpoints are trained from nothing on the picture-book world."""
