#!/bin/sh
# Begin a container of the image: a program of it by its name, or else a command of `stylegan`.
#   entry.sh ray start --head ...   prefect worker start ...   mlflow server ...   bash
#   entry.sh run CONFIG             serve MODEL                --help
#   entry.sh driver run CONFIG      any of these on a node of the Ray cluster, which whatever drives a run needs
set -eu

# End this container once its node has been gone for a minute, as it is when its cluster is lost: what restarts the container
# then joins the new cluster.
follow_node() {
    missed=0
    while [ $missed -lt 6 ]; do
        sleep "${FOLLOW_SECONDS:-10}"
        kill -0 "$1" 2>/dev/null || return 0
        if wget -q -T 5 -O /dev/null http://127.0.0.1:52365/api/local_raylet_healthz; then missed=0; else missed=$((missed + 1)); fi
    done
    echo "the Ray node of this container is gone" >&2
    kill -TERM "$1"
}

if [ "${1:-}" = driver ]; then
    shift
    : "${STYLEGAN_RAY_ADDRESS:?names the head of the cluster that a driver joins}"
    # A node that does no work. What Ray says of it is only of interest if it fails.
    node="--num-cpus=0 --num-gpus=0 --object-store-memory=200000000 --disable-usage-stats"
    # shellcheck disable=SC2086 # words
    said=$(ray start --address="$STYLEGAN_RAY_ADDRESS" $node 2>&1) || { echo "$said" >&2; exit 1; }
    follow_node $$ &
fi
case ${1:-} in
ray | prefect | mlflow | python | python3 | bash | sh)
    exec "$@"
    ;;
stylegan)
    shift
    ;;
esac
exec stylegan "${@:---help}"
