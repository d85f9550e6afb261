"""What is built: one file for each link of the chain, plain functions that tests call."""
