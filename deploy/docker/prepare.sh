#!/bin/bash
# Makes what the containers of deploy/compose.yaml need, in their volumes: certificates, and each node's configuration and
# PIN. Runs once before them each time they are started, and keeps what is there.
set -euo pipefail
umask 077

cluster=$1
shift

# Who signs what: customer, the nodes' certificates; clients, those of the daemon and of whoever calls it.
cd /ca
[ -e customer/ca.crt ] || keyway ca init --out customer --name "customer CA"
[ -e clients/ca.crt ] || keyway ca init --out clients --name "clients' CA"

cd /daemon
[ -e localhost.crt ] || keyway ca issue localhost --ca /ca/clients --server --san daemon --san 127.0.0.1 --out .
[ -e keyway-daemon.crt ] || keyway ca issue keyway-daemon --ca /ca/clients --out .
[ -e admin.crt ] || keyway ca issue admin --ca /ca/clients --out .
cp /ca/clients/ca.crt clients-ca.crt
cp /ca/customer/ca.crt customerCA.crt
cat >keyway.toml <<TOML
data_dir = "data"
sealing_key_file = "sealing.key"
node_client = { certificate = "keyway-daemon.crt", private_key = "keyway-daemon.key" }

[grpc]
unix_socket = "/run/keyway/keyway.sock"
listen = "0.0.0.0:50051"
tls = { certificate = "localhost.crt", private_key = "localhost.key", client_ca = "clients-ca.crt" }

[http]
listen = "0.0.0.0:8080"

[authz]
admins = ["admin"]

[clusters.$cluster]
region = "us-east-1"
account = "000000000000"
trust_anchor = "customerCA.crt"
sync = "wrap"
profile = "softhsm2"
TOML

for node in "$@"; do
    hsm=${node%%=*} zone=${node#*=}
    keyway node init --cluster "$cluster" --hsm "$hsm" --name "$hsm" --data-dir "/$hsm/node" >/dev/null
    (
        cd "/$hsm/node"
        [ -e node.crt ] || { keyway ca issue "$hsm" --ca /ca/customer --server --csr node.csr --out . && mv "$hsm.crt" node.crt; }
        cp /ca/clients/ca.crt daemons-ca.crt
    )
    cat >>keyway.toml <<TOML

[clusters.$cluster.nodes.$hsm]
zone = "$zone"
address = "$hsm"
manages_users = true
TOML
done

chown -R keyway:keyway /ca /daemon /hsm-*
