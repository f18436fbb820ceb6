#!/usr/bin/env node
// Prisma's query engine for prisma-client-py 0.11, without Prisma's native program: the same engine, compiled to WASM
// and published on npm, over node-postgres. A bridge between two protocols of the engine:
//
//     prisma-client-py  --GraphQL over HTTP-->  here  --JSON protocol-->  engine (WASM)  --driver adapter-->  PostgreSQL
//
// The client starts this as it would start the native engine: `query-engine -p PORT …` with PRISMA_DML_PATH (the
// schema) and DATABASE_URL in the environment, asks `GET /status` until it answers, and ends it by a signal.
'use strict';

process.title = 'query-engine-wasm';

// The commit of Prisma 5.4.2, which prisma-client-py 0.11 was made for and insists on.
const CLIENTS_ENGINE = 'ac9d7041ed77bcc8a8dbd2ab6616b39013829574';
if (process.argv.includes('--version')) {
  console.log(`query-engine ${CLIENTS_ENGINE}`);
  process.exit(0);
}

const fs = require('fs');
const http = require('http');
const path = require('path');
const { parse } = require('graphql');
const { Pool } = require('pg');
const { PrismaPg } = require('@prisma/adapter-pg');
const { bindAdapter } = require('@prisma/driver-adapter-utils');

const SCHEMA = fs.readFileSync(process.env.PRISMA_DML_PATH, 'utf8');
const TRACE = '{}'; // every call of the engine takes a trace context; there is none
const DEFAULT_CONNECTIONS = 10;
const KEEP_ALIVE_MS = 60_000;
const PARENT_CHECK_MS = 1000;

// --- From GraphQL to the JSON protocol ---------------------------------------------------------------------------

// `findManyLiteLLM_UserTable` is the action findMany on a model; some actions have a suffix behind the model's name.
const ACTIONS = [
  ['findUnique', 'OrThrow'], ['findFirst', 'OrThrow'], ['findMany'], ['createOne'], ['createMany'], ['updateOne'],
  ['updateMany'], ['upsertOne'], ['deleteOne'], ['deleteMany'], ['aggregate'], ['groupBy'],
];

function operationOf(name) {
  if (name === 'queryRaw' || name === 'executeRaw') return { action: name };
  for (const [action, suffix] of ACTIONS) {
    if (!name.startsWith(action)) continue;
    const model = name.slice(action.length);
    if (suffix && model.endsWith(suffix)) return { modelName: model.slice(0, -suffix.length), action: action + suffix };
    return { modelName: model, action };
  }
  throw new Error(`unknown operation ${name}`);
}

// {model: {field: type}}, out of the schema.
const MODELS = {};
for (const [, model, body] of SCHEMA.matchAll(/^model\s+(\w+)\s*\{([\s\S]*?)^\}/gm)) {
  MODELS[model] = {};
  for (const line of body.split('\n')) {
    const field = /^\s*(\w+)\s+(\w+)(\[\])?\??/.exec(line);
    const isField = field && !line.trim().startsWith('//') && !line.trim().startsWith('@@');
    if (isField) MODELS[model][field[1]] = field[2];
  }
}

function valueOf(node) {
  switch (node.kind) {
    case 'IntValue': {
      const number = Number(node.value);
      return Number.isSafeInteger(number) ? number : { $type: 'BigInt', value: node.value };
    }
    case 'FloatValue': return Number(node.value);
    case 'StringValue': case 'EnumValue': case 'BooleanValue': return node.value;
    case 'NullValue': return null;
    case 'ListValue': return node.values.map(valueOf);
    case 'ObjectValue': return Object.fromEntries(node.fields.map((field) => [field.name.value, valueOf(field.value)]));
    default: throw new Error(`unknown value ${node.kind}`);
  }
}

// GraphQL has the value of a Json column as text; the JSON protocol wants it marked. Filters on such a column have
// parts that are no values: a path, a mode, and what compares texts.
function markJson(value) {
  if (typeof value === 'string') return { $type: 'Json', value };
  if (Array.isArray(value)) return value.map(markJson);
  if (value === null || typeof value !== 'object' || value.$type) return value;
  const isPlain = (key) => key === 'path' || key === 'mode' || key.startsWith('string_');
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, isPlain(key) ? part : markJson(part)]));
}

function markJsonColumns(value, model) {
  if (Array.isArray(value)) return value.map((item) => markJsonColumns(item, model));
  if (value === null || typeof value !== 'object' || value.$type) return value;
  const fields = MODELS[model] || {};
  const marked = {};
  for (const [key, part] of Object.entries(value)) {
    const type = fields[key];
    if (type === 'Json') marked[key] = markJson(part);
    else if (MODELS[type]) marked[key] = markJsonColumns(part, type); // a relation
    else marked[key] = type ? part : markJsonColumns(part, model); // a column, or a word such as `where` and `AND`
  }
  return marked;
}

function argumentsOf(field) {
  return Object.fromEntries((field.arguments || []).map((argument) => [argument.name.value, valueOf(argument.value)]));
}

function selectionOf(set) {
  const selection = {};
  for (const field of set ? set.selections : []) {
    const isNested = field.selectionSet || (field.arguments || []).length > 0;
    selection[field.name.value] = isNested
      ? { arguments: argumentsOf(field), selection: selectionOf(field.selectionSet) }
      : true;
  }
  return selection;
}

// [[key of the answer, query]]
function queriesOf(graphql) {
  return parse(graphql, { noLocation: true }).definitions[0].selectionSet.selections.map((field) => {
    const operation = operationOf(field.name.value);
    const given = argumentsOf(field);
    const known = operation.modelName ? markJsonColumns(given, operation.modelName) : given;
    const key = field.alias ? field.alias.value : field.name.value;
    return [key, { ...operation, query: { arguments: known, selection: selectionOf(field.selectionSet) } }];
  });
}

// --- And back ----------------------------------------------------------------------------------------------------

function unmark(value) {
  if (Array.isArray(value)) return value.map(unmark);
  if (value === null || typeof value !== 'object') return value;
  if ('$type' in value) {
    if (value.$type !== 'BigInt') return value.value;
    const number = Number(value.value);
    return Number.isSafeInteger(number) ? number : value.value;
  }
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, unmark(part)]));
}

// Engines of that age give each value of a raw row together with its type; today's give columns, types and rows.
function rawRows(value) {
  if (!value || !Array.isArray(value.columns)) return value;
  const typed = (type, cell) => {
    if (cell === null) return { prisma__type: 'null', prisma__value: null };
    if (!type.endsWith('-array')) return { prisma__type: type, prisma__value: cell };
    const inner = type.slice(0, -'-array'.length);
    return { prisma__type: 'array', prisma__value: cell.map((item) => ({ prisma__type: inner, prisma__value: item })) };
  };
  return value.rows.map((row) =>
    Object.fromEntries(value.columns.map((column, index) => [column, typed(value.types[index], row[index])])),
  );
}

function resultOf(answer, key) {
  return answer.errors ? answer : { data: { [key]: rawRows(unmark(Object.values(answer.data)[0])) } };
}

// --- The database ------------------------------------------------------------------------------------------------

const LOST = new Set([
  'ECONNREFUSED', 'ECONNRESET', 'EPIPE', 'ETIMEDOUT', 'ENOTFOUND', '57P01', '57P02', '57P03', '08006', '08001', '08003',
]);
const LOST_WORDS = /Connection terminated|timeout exceeded when trying to connect/;
const LOST_MEMORY_MS = 5000;
let lostAt = 0;

// Types that the adapter refuses are read as text, as the native engine reads them: name, char, regclass, void, …
const AS_TEXT = { 18: 25, 19: 25, 24: 25, 705: 25, 2205: 25, 2206: 25, 2278: 25, 4089: 25, 1002: 1009, 1003: 1009 };

function mendAdapter() {
  const queryable = Object.getPrototypeOf(PrismaPg.prototype);
  const performIO = queryable.performIO;
  queryable.performIO = async function performMended(query) {
    try {
      const result = await performIO.call(this, query);
      for (const field of (result && result.ok && result.value && result.value.fields) || []) {
        if (AS_TEXT[field.dataTypeID]) field.dataTypeID = AS_TEXT[field.dataTypeID];
      }
      return result;
    } catch (error) {
      if (LOST.has(error && error.code) || LOST_WORDS.test(error && error.message)) lostAt = Date.now();
      throw error;
    }
  };
}

// The client may name another database than the environment's.
function databaseUrl() {
  const overrides = process.env.OVERWRITE_DATASOURCES;
  const [first] = overrides ? JSON.parse(overrides) : [];
  return new URL((first && first.url) || process.env.DATABASE_URL);
}

const PRISMAS_OWN = [
  'schema', 'connection_limit', 'pool_timeout', 'connect_timeout', 'socket_timeout', 'pgbouncer', 'statement_cache_size',
];

function openPool(url) {
  const schema = url.searchParams.get('schema') || 'public';
  const max = Number(url.searchParams.get('connection_limit') || DEFAULT_CONNECTIONS);
  for (const name of PRISMAS_OWN) url.searchParams.delete(name);
  const pool = new Pool({ connectionString: url.toString(), max, options: '-c TimeZone=UTC' });
  pool.on('error', (error) => console.error('database connection lost:', error.message));
  return { pool, schema };
}

async function openEngine(url) {
  mendAdapter();
  const folder = path.dirname(require.resolve('@prisma/client/runtime/query_engine_bg.postgresql.js'));
  const glue = require(path.join(folder, 'query_engine_bg.postgresql.js'));
  const wasm = fs.readFileSync(path.join(folder, 'query_engine_bg.postgresql.wasm'));
  const { instance } = await WebAssembly.instantiate(wasm, { './query_engine_bg.js': glue });
  glue.__wbg_set_wasm(instance.exports);
  const { pool, schema } = openPool(url);
  const options = {
    datamodel: SCHEMA, env: process.env, logQueries: false, ignoreEnvVarErrors: true, datasourceOverrides: {},
    logLevel: 'error', configDir: '.', engineProtocol: 'json',
  };
  const engine = new glue.QueryEngine(options, () => {}, bindAdapter(new PrismaPg(pool, { schema })));
  await engine.connect(TRACE);
  return engine;
}

// --- HTTP --------------------------------------------------------------------------------------------------------

async function answerOne(engine, body, transaction) {
  const data = {};
  for (const [key, query] of queriesOf(body.query)) {
    const answer = JSON.parse(await engine.query(JSON.stringify(query), TRACE, transaction));
    if (answer.errors) return answer;
    Object.assign(data, resultOf(answer, key).data);
  }
  return { data };
}

async function answerBatch(engine, body, transaction) {
  const queries = body.batch.map((part) => queriesOf(part.query)[0]);
  const asked = { batch: queries.map(([, query]) => query), transaction: body.transaction ? {} : undefined };
  const answer = JSON.parse(await engine.query(JSON.stringify(asked), TRACE, transaction));
  if (answer.errors) return answer;
  return { batchResult: answer.batchResult.map((result, index) => resultOf(result, queries[index][0])) };
}

async function startTransaction(engine, body) {
  const answer = JSON.parse(await engine.startTransaction(body, TRACE));
  return answer.error_code ? { errors: [{ error: answer.message, user_facing_error: answer }] } : answer;
}

async function endTransaction(engine, id, how) {
  const end = how === 'commit' ? engine.commitTransaction : engine.rollbackTransaction;
  const answer = JSON.parse((await end.call(engine, id, TRACE)) || '{}');
  return answer.error_code ? { errors: [{ error: answer.message, user_facing_error: answer }] } : answer;
}

async function answer(engine, request, body) {
  const where = request.url.split('?')[0];
  if (where === '/status') return { status: 'ok' };
  if (where === '/metrics') return { counters: [], gauges: [], histograms: [] };
  if (where === '/transaction/start') return startTransaction(engine, body);
  const ending = /^\/transaction\/([^/]+)\/(commit|rollback)$/.exec(where);
  if (ending) return endTransaction(engine, ending[1], ending[2]);
  const asked = JSON.parse(body);
  const transaction = request.headers['x-transaction-id'];
  return asked.batch ? answerBatch(engine, asked, transaction) : answerOne(engine, asked, transaction);
}

function failure(message, code, meta = {}) {
  return { errors: [{ error: message, user_facing_error: { is_panic: false, message, error_code: code, meta } }] };
}

// A lost connection shows here as an error of the "external connector"; the client knows it as P1001 and tries again.
function withLostConnection(result, url) {
  const isFresh = Date.now() - lostAt < LOST_MEMORY_MS;
  const text = (error) => error.error || (error.user_facing_error || {}).message || '';
  if (!result.errors || !isFresh || !result.errors.some((error) => /external connector/i.test(text(error)))) {
    return result;
  }
  const host = `${url.hostname}:${url.port || 5432}`;
  return failure(`Can't reach database server at \`${host}\``, 'P1001', {
    database_host: url.hostname, database_port: Number(url.port || 5432),
  });
}

async function main() {
  const flag = process.argv.indexOf('-p');
  const port = Number(flag < 0 ? process.env.PORT : process.argv[flag + 1]);
  const url = databaseUrl();
  const engine = await openEngine(new URL(url));
  const server = http.createServer((request, response) => {
    let body = '';
    request.setEncoding('utf8');
    request.on('data', (piece) => { body += piece; });
    request.on('end', async () => {
      let result;
      try {
        result = await answer(engine, request, body);
      } catch (error) {
        console.error('query-engine:', error); // never the query: it holds values
        result = failure(String((error && error.message) || error), 'P2010');
      }
      response.writeHead(200, { 'content-type': 'application/json' });
      response.end(JSON.stringify(withLostConnection(result, url)));
    });
  });
  server.keepAliveTimeout = KEEP_ALIVE_MS;
  server.listen(port, 'localhost');
  const parent = process.ppid; // a proxy that was killed tells nobody
  setInterval(() => process.ppid === parent || process.exit(0), PARENT_CHECK_MS);
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(0));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
