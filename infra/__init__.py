"""Set-up, images, Kubernetes manifests and their local run without Kubernetes."""
