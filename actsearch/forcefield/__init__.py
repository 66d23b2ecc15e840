"""Force fields: energy, forces and stress of atoms, by models whose activations can be searched."""
