"""What files hold: an AnnData, whole or in parts, its matrices, what they are relative to, and several as one."""
