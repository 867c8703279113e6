"""Pages that are made of the code: ``python -m docs.reference`` writes them anew."""
