"""Video at cluster scale: storage, datasets, training and evaluation on Ray, DeepSpeed and MLflow."""
