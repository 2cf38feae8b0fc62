# syntax=docker/dockerfile:1
# escape=\
# check=skip=JSONArgsRecommended
ARG BASE=debian REGISTRY
ARG TAG="bookworm slim"

FROM --platform=$BUILDPLATFORM ${REGISTRY:-docker.io}/$BASE:$TAG AS Build
ARG TARGETARCH
ENV PATH=/go/bin:$PATH A="one two" B=three\ four
ENV OLD the old way
LABEL org.example.title="A title" \
      # a comment in between

      org.example.x=y
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN --mount=type=cache,id=apt,target=/var/cache/apt,sharing=locked \
    --mount=type=bind,from=other,source=/src,target=/src,rw \
    --mount=type=secret,id=token,env=TOKEN,required=true \
    --mount=type=tmpfs,target=/tmp,size=64m --mount=type=ssh \
    --network=none --security=sandbox \
    apt-get update && \
    apt-get install -y make
RUN ["make", "all"]
RUN <<EOF
set -e
echo $A
EOF
RUN python3 <<-'PY' && echo done
	print("hello")
	PY
COPY --from=0 --chown=1:2 --chmod=u=rwX,go=rX --link --parents --exclude=*.o --exclude=b a/b "c d" /dest/
COPY ["with space", "/to here/"]
COPY <<one.txt <<"two.txt" /files/
variables: $A
one.txt
none: $A
two.txt
ADD --checksum=sha256:0123 --keep-git-dir=true --unpack=false https://example.org/x.tar.gz /x/
WORKDIR /a b/c
USER ${USER:-nobody}:users
EXPOSE 80 53/udp $PORT
VOLUME /a /b
VOLUME ["/c d"]
STOPSIGNAL SIGQUIT
HEALTHCHECK --interval=1m30s --timeout=5s --start-period=1s --start-interval=200ms --retries=2 \
  CMD curl -f http://localhost/ || exit 1
HEALTHCHECK NONE
MAINTAINER somebody
ONBUILD COPY . /app

from scratch
CMD
ENTRYPOINT ["/init"]
CMD echo $HOME
