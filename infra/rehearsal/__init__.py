"""The manifests of infra/k8s run on one machine, without Kubernetes."""
