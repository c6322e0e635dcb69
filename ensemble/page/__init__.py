"""A folder of static files in which a browser runs the fused ensemble on a photograph, and a server for it."""
