"""Set-up, images, Kubernetes manifests and their rehearsal."""
