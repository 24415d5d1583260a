"""What a closed loop does in the model: tracking, local linearity, the bound on its error."""
