"""What both jobs share: recipes, models, MLflow, Ray clusters and the command line."""
