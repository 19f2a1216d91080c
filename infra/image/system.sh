#!/bin/sh
# Prepare Debian: system.sh. What the image takes from Debian, its user, and the folder where commands are run.
# ROOT puts user and folders below another folder, for tests.
set -eu
ROOT=${ROOT:-}

# tini ends what a stopped service leaves behind; KubeRay's probes of Ray nodes call wget.
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends ca-certificates tini wget
rm -rf "$ROOT"/var/lib/apt/lists/* "$ROOT"/var/cache/apt/*.bin

echo 'stylegan:x:1000:' >> "$ROOT/etc/group"
echo 'stylegan:x:1000:1000::/home/stylegan:/bin/bash' >> "$ROOT/etc/passwd"
# /data is where volumes are mounted: a new volume takes over the owner of the folder.
for folder in home/stylegan work data; do
    install --directory --owner=1000 --group=1000 "$ROOT/$folder"
done
# Debian's login shells, in which KubeRay may start Ray, would forget the image's PATH.
install --directory "$ROOT/etc/profile.d"
echo 'PATH=/opt/stylegan/bin:$PATH' > "$ROOT/etc/profile.d/stylegan.sh"
