"""What every other package uses: errors, digests, names and settings."""
