"""The node of the laptop's cluster: Pod objects become running programs, and what happens to those becomes their status.

`images` says what stands for an image, `template` reads a container, `status` writes a status, `plan` decides (all pure);
`service` listens to the objects and acts through `backend.localkube.runtime`. `scheduler` gives every Pod the one node.
"""
