"""Transfer of trained networks to action classification: fine-tuning, label fractions, scoring."""
