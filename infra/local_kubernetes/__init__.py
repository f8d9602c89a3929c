"""Local run of the manifests of infra/k8s on one machine, without Kubernetes."""
