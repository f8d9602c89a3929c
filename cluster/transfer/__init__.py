"""Label efficiency: fine-tuning on UCF101 from several initializations over label fractions (paper figure 4)."""
