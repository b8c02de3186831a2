"""Pictures: outputs.py is their only writer; recipe.py what is inside them; container.py their formats."""
