// dockerode against DOCKER_HOST: promises, hijacked streams, WebSockets.
'use strict';
const assert = require('node:assert');
const { PassThrough } = require('node:stream');
const Docker = require('dockerode');
const WebSocket = require('ws');

const socketPath = process.env.DOCKER_HOST.replace('unix://', '');
const docker = new Docker({ socketPath });

const ended = (stream) => new Promise((done, failed) => stream.once('end', done).once('close', done).once('error', failed));

function collected(stream) {
  const chunks = [];
  stream.on('data', (chunk) => chunks.push(chunk));
  return () => Buffer.concat(chunks).toString();
}

async function run() {
  const out = new PassThrough();
  const text = collected(out);
  const [result, container] = await docker.run('busybox', ['sh', '-c', 'echo out; exit 5'], out);
  assert.strictEqual(result.StatusCode, 5);
  assert.match(text(), /^out\r?\n$/);
  await container.remove();
}

async function attach() {
  const container = await docker.createContainer({
    Image: 'busybox', Cmd: ['sh', '-c', 'cat; echo err >&2'], OpenStdin: true, StdinOnce: true,
    HostConfig: { NetworkMode: 'none' },
  });
  const stream = await container.attach({ stream: true, stdin: true, stdout: true, stderr: true, hijack: true });
  const [out, err] = [new PassThrough(), new PassThrough()];
  const [stdout, stderr] = [collected(out), collected(err)];
  container.modem.demuxStream(stream, out, err);
  await container.start();
  stream.end('typed\n');
  await ended(stream);
  assert.deepStrictEqual([stdout(), stderr()], ['typed\n', 'err\n']);
  assert.strictEqual((await container.wait()).StatusCode, 0);
  await container.remove();
}

async function exec(container) {
  const exec = await container.exec({ Cmd: ['sh', '-c', 'cat; exit 6'], AttachStdin: true, AttachStdout: true });
  const stream = await exec.start({ hijack: true, stdin: true });
  const out = new PassThrough();
  const text = collected(out);
  container.modem.demuxStream(stream, out, new PassThrough());
  stream.end('in\n');
  await ended(stream);
  assert.strictEqual(text(), 'in\n');
  assert.strictEqual((await exec.inspect()).ExitCode, 6);
  // Without an upgrade the answer is 200 and the output its body.
  const plain = await (await container.exec({ Cmd: ['echo', 'plain'], AttachStdout: true, Tty: true })).start({});
  const said = collected(plain);
  await ended(plain);
  assert.strictEqual(said(), 'plain\r\n');
}

function webSocket(name, input) {
  const path = `/v1.42/containers/${name}/attach/ws?stream=1&stdin=1&stdout=1&stderr=1`;
  const socket = new WebSocket(`ws+unix://${socketPath}:${path}`);
  const chunks = [];
  return new Promise((done, failed) => {
    socket.on('open', () => socket.send(input));
    socket.on('message', (chunk) => chunks.push(chunk));
    socket.on('close', () => done(Buffer.concat(chunks).toString()));
    socket.on('error', failed);
  });
}

async function life() {
  const events = await docker.getEvents({ filters: { container: ['box'] } });
  const seen = collected(events);
  const container = await docker.createContainer({
    name: 'box', Image: 'busybox', Cmd: ['sh', '-c', 'echo begun; read a; echo got $a'], OpenStdin: true,
    Labels: { a: 'b' }, ExposedPorts: { '80/tcp': {} },
    HostConfig: { PortBindings: { '80/tcp': [{ HostPort: '' }] }, Init: true },
  });
  await container.start();
  const inspect = await container.inspect();
  assert.strictEqual(inspect.State.Status, 'running');
  assert.ok(Number(inspect.NetworkSettings.Ports['80/tcp'][0].HostPort) > 0);
  await exec(container);
  const stats = await container.stats({ stream: false });
  assert.ok(stats.memory_stats.usage > 0);
  assert.ok(stats.networks.eth0);
  const archive = await container.getArchive({ path: '/etc/passwd' });
  const bytes = collected(archive);
  await ended(archive);
  assert.match(bytes(), /alice/);
  const listed = await docker.listContainers({ filters: { label: ['a=b'] } });
  assert.strictEqual(listed[0].Names[0], '/box');
  assert.strictEqual(await webSocket('box', 'word\n'), 'got word\n');
  assert.strictEqual((await container.wait()).StatusCode, 0);
  const logs = await container.logs({ stdout: true, stderr: true });
  assert.match(logs.toString(), /begun[^]*got word/);
  await container.remove({ v: true });
  while (!seen().includes('"destroy"')) await new Promise((next) => events.once('data', next));
  events.destroy();
}

async function rest() {
  const volume = await docker.createVolume({ Name: 'data' });
  assert.strictEqual((await docker.getVolume('data').inspect()).Driver, 'local');
  await docker.getVolume(volume.Name ?? volume.name).remove();
  const network = await docker.createNetwork({ Name: 'net', Driver: 'bridge' });
  assert.strictEqual((await network.inspect()).Scope, 'local');
  await network.remove();
  assert.strictEqual((await docker.version()).Os, 'linux');
  await assert.rejects(docker.getContainer('nobody').inspect(), (error) => error.statusCode === 404);
  await assert.rejects(docker.listServices(), (error) => error.statusCode === 503);
}

(async () => {
  for (const part of [run, attach, life, rest]) {
    await part();
    console.log(part.name);
  }
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
