"""What the user declared: options, deployments, and the graph they are bound into. Inert: it runs nothing."""
