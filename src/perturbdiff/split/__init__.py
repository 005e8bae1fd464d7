"""What is held out: rules, the few cells that they keep, the audit, fingerprints of the cells a training has seen."""
