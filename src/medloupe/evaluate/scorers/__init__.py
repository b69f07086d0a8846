"""What an answer is worth: one file per kind of scorer; `base.Scorer.table` names them all."""
