#!/bin/sh
# publish.sh FOLDER < models.tar: unpack NAME/VERSION/... into a folder that a server watches. Each version appears under
# its name at once and whole, and none that is there is touched.
set -eu
incoming="$1/.incoming"
rm -rf "$incoming"
mkdir -p "$incoming"
tar -x -f - -C "$incoming"
for version in "$incoming"/*/[0-9]*/; do
  name=${version#"$incoming"/}
  name=${name%/}
  if [ ! -f "$version/saved_model.pb" ]; then
    echo "$name: there is no saved_model.pb, left out" >&2
  elif [ -e "$1/$name" ]; then
    echo "$name: it is there already, left out" >&2
  else
    chmod -R a+rX "$version"
    mkdir -p "$1/${name%/*}"
    mv "$version" "$1/$name"
    echo "$name: published"
  fi
done
rm -rf "$incoming"
