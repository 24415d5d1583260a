"""`ot.contrastive`: pairs of texts for a described axis, written by a model or by any function."""
