"""The device mesh and the rules from logical axes to mesh axes; no other room names a mesh axis."""
