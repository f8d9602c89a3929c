#!/usr/bin/env bash
# Create the missing secrets that the manifests refer to, with random values: bash infra/k8s/secrets.sh
# Values are piped to the API server; they are not printed, stored, or visible in process arguments. To rotate a secret,
# delete it, run this again, and restart the pods that use it. PostgreSQL and MLflow keep their first passwords: change
# them there too.
set -euo pipefail
namespace=${1:-scene}

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
value() { kubectl --namespace "$namespace" get secret "$1" --output "jsonpath={.data.$2}" | base64 --decode; }
make() { # NAME, then its stringData as JSON on standard input
  if kubectl --namespace "$namespace" get secret "$1" >/dev/null 2>&1; then
    echo "secret/$1 exists"
  else
    { printf '{"apiVersion":"v1","kind":"Secret","metadata":{"name":"%s"},"stringData":' "$1"; cat; printf '}'; } \
      | kubectl --namespace "$namespace" create --filename -
  fi
}

kubectl --namespace "$namespace" get secrets >/dev/null # fail here if the cluster cannot be reached: it would look empty
make ray-token <<<"{\"auth_token\":\"$(random)\"}"
make s3 <<<"{\"access-key-id\":\"$(random)\",\"secret-access-key\":\"$(random)\"}"
make mlflow-client <<<"{\"username\":\"admin\",\"password\":\"$(random)\"}"
make postgres <<<"{\"password\":\"$(random)\"}"
database="postgresql://mlflow:$(value postgres password)@postgres:5432/mlflow"
make mlflow-server <<<"{\"backend-store-uri\":\"$database\",\"flask-secret-key\":\"$(random)\",\"basic_auth.ini\":\"[mlflow]\\ndefault_permission = READ\\ndatabase_uri = $database\\nadmin_username = admin\\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\\n\"}"
