"""A scan on its way to the network and back: attributes, voxels, tiles, context, votes."""
