-- What the ledger's scripts share; this stands before each of them.
--
-- ARGV[1] is the prefix of every key. All times are the server's, in seconds: the clocks of
-- callers and workers may be wrong, and leases must not depend on them.
local P = ARGV[1]
local call = redis.call

local CLASSES = { 'interactive', 'standard', 'batch' }

-- Seconds within which a job without a deadline would like to start. Within a tenant's plugin
-- jobs go by their deadline, so that one with a deadline overtakes those that can wait.
local HORIZON = { interactive = 10, standard = 300, batch = 86400 }

-- A crash may have been a neighbour's fault: all jobs of a worker die with it. So a job that was
-- there twice is run alone, and one whose worker dies then is to blame.
local ALONE_AFTER = 2
local DEAD_AFTER = 3

local LISTED = 10000 -- jobs that a listing can go back
local JOURNAL = 10000 -- ends of jobs to remember, about

local function now()
  local time = call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1e6
end

local function text(seconds) return string.format('%.6f', seconds) end

local function job_key(id) return P .. 'job:' .. id end

-- A hash's fields as a table; fields that are not there are nil.
local function read(key, ...)
  local values, found = call('HMGET', key, ...), {}
  for index, name in ipairs({ ... }) do
    if values[index] then found[name] = values[index] end
  end
  return found
end

-- The fields that say where a job stands and waits.
local function place_of(id)
  local job = read(job_key(id), 'state', 'class', 'tenant', 'task', 'due', 'items', 'submitted',
    'batch', 'idem', 'crashes', 'next')
  job.id = id
  job.cost = tonumber(job.items or 1)
  job.plugin = string.match(job.task or '', '^[^.]*')
  return job
end

local function tally(name, amount) call('HINCRBY', P .. 'totals', name, amount or 1) end

-- Waiting, fairly.
--
-- Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), once among the tenants of a
-- class and once among the plugins of a tenant: whoever was served least, by weight, is next.
-- A level is a sorted set of those that have jobs waiting, by virtual start time; `<level>:vt`
-- keeps the virtual finish time of each, and under `@` the start time of the one served last.
-- Whoever comes back continues where he left off, or at `@`: waiting is no credit.

local function level_of(class) return P .. 'ready:' .. class end
local function flow_of(job) return level_of(job.class) .. '/' .. job.tenant .. '/' .. job.plugin end

local function join(level, member)
  if call('ZSCORE', level, member) then return end
  local times = call('HMGET', level .. ':vt', '@', member)
  call('ZADD', level, math.max(tonumber(times[1] or 0), tonumber(times[2] or 0)), member)
end

local function leave(level, member)
  call('ZREM', level, member)
  if call('EXISTS', level) == 0 then call('DEL', level .. ':vt') end
end

local function charge(level, member, amount, stays)
  local start = tonumber(call('ZSCORE', level, member))
  local finish = start + amount
  call('HSET', level .. ':vt', '@', start, member, finish)
  if stays then call('ZADD', level, finish, member) else leave(level, member) end
end

local function make_ready(job)
  local level = level_of(job.class)
  call('ZADD', flow_of(job), job.due, job.id)
  join(level .. '/' .. job.tenant, job.plugin)
  join(level, job.tenant)
end

-- Take the job out that is next in its class; nil where none waits.
local function pop_ready(class)
  local level = level_of(class)
  local tenant = call('ZRANGE', level, 0, 0)[1]
  if not tenant then return nil end
  local inner = level .. '/' .. tenant
  local plugin = call('ZRANGE', inner, 0, 0)[1]
  local flow = inner .. '/' .. plugin
  local job = place_of(call('ZPOPMIN', flow)[1])
  charge(inner, plugin, job.cost, call('EXISTS', flow) == 1)
  local weight = tonumber(call('HGET', P .. 'policy', 'weight:' .. tenant) or 1)
  charge(level, tenant, job.cost / weight, call('EXISTS', inner) == 1)
  return job
end

local function drop_ready(job)
  local level, flow = level_of(job.class), flow_of(job)
  if call('ZREM', flow, job.id) == 0 or call('EXISTS', flow) == 1 then return end
  local inner = level .. '/' .. job.tenant
  leave(inner, job.plugin)
  if call('EXISTS', inner) == 0 then leave(level, job.tenant) end
end

-- Being queued. A queued job is in exactly one of: a flow, `delayed`, `fed`, `suspects`.

local function count(name, amount)
  local depth = P .. 'depth'
  if call('HINCRBY', depth, name, amount) <= 0 then call('HDEL', depth, name) end
end

-- `from`: not before this time; what waits for it is not late.
local function begin_waiting(job, from)
  call('ZADD', P .. 'waiting:' .. job.class, from or job.submitted, job.id)
  count(job.class, job.cost)
  count(job.class .. '/' .. job.tenant, job.cost)
end

local function end_waiting(job)
  if call('ZREM', P .. 'waiting:' .. job.class, job.id) == 0 then return end
  count(job.class, -job.cost)
  count(job.class .. '/' .. job.tenant, -job.cost)
end

-- Say that a doorbell is on its way to a worker.
local function mark_fed(job, time)
  if call('ZADD', P .. 'fed', time, job.id) == 1 then count('@fed', job.cost) end
end

local function unmark_fed(job)
  if call('ZREM', P .. 'fed', job.id) == 0 then return false end
  count('@fed', -job.cost)
  return true
end

local function wait_until(job, time)
  call('ZADD', P .. 'delayed', time, job.id)
end

-- Take a queued job out of wherever it waits.
local function withdraw(job)
  end_waiting(job)
  if unmark_fed(job) then return end
  if call('ZREM', P .. 'delayed', job.id) == 1 then return end
  if call('ZREM', P .. 'suspects', job.id) == 1 then return end
  drop_ready(job)
end

-- Let a queued job that waits nowhere wait for its turn.
local function line_up(job)
  if tonumber(job.crashes or 0) >= ALONE_AFTER then
    call('ZADD', P .. 'suspects', job.submitted, job.id)
  else
    make_ready(job)
  end
end

-- Enqueue what was running or has ended again, at `time` or at once.
local function requeue(job, time)
  call('HSET', job_key(job.id), 'state', 'queued')
  call('HDEL', job_key(job.id), 'claim', 'until')
  begin_waiting(job, time)
  if time then wait_until(job, time) else line_up(job) end
end

-- Enqueue the delayed jobs whose time has come.
local function release_delayed(time, most)
  local due = call('ZRANGEBYSCORE', P .. 'delayed', '-inf', time, 'LIMIT', 0, most)
  for _, id in ipairs(due) do
    call('ZREM', P .. 'delayed', id)
    line_up(place_of(id))
  end
  return #due
end

-- Batches.

-- Seconds after the last message or result that a batch is kept whose end does not come.
local PENDING_TTL = 30 * 86400

local function batch_key(id) return P .. 'batch:' .. id end

local function keep_batch(id, seconds)
  local batch = batch_key(id)
  for _, key in ipairs({ batch, batch .. ':results', batch .. ':jobs', P .. 's:' .. id }) do
    call('EXPIRE', key, seconds)
  end
end

-- Count a message that was accepted. While a batch is open, its total is what it has so far.
local function add_message(id, job_id, items)
  local batch = batch_key(id)
  if call('EXISTS', batch) == 0 then return end
  if call('HGET', batch, 'sealed') == '0' then call('HINCRBY', batch, 'total', items) end
  call('SADD', batch .. ':jobs', job_id)
  keep_batch(id, PENDING_TTL)
end

-- Let a batch expire once nothing of it is waited for; `ttl` is for how long it is kept then.
local function settle_batch(id, ttl)
  local held = read(batch_key(id), 'total', 'done', 'failed')
  local ended = tonumber(held.done or 0) + tonumber(held.failed or 0)
  keep_batch(id, ended >= tonumber(held.total or 0) and ttl or math.max(ttl, PENDING_TTL))
end

-- Ending.

-- The result of a job that ends without a worker's doing, as `gptflow.result` reads it.
local function failure(job, state, code, message, hint)
  return string.format(
    '{"v":1,"id":%s,"task":%s,"state":"%s","output":null,'
      .. '"error":{"code":"%s","message":%s,"hint":%s},"provenance":null,"abstained":null,'
      .. '"warnings":[],"timings":{}}',
    cjson.encode(job.id), cjson.encode(job.task), state, code, cjson.encode(message),
    hint and cjson.encode(hint) or 'null'
  )
end

-- Record the end of a job that has none yet, wherever it stands.
local function finish(job, state, result, ttl)
  local key, time = job_key(job.id), now()
  if job.state == 'running' then call('ZREM', P .. 'lease', job.id) else withdraw(job) end
  call('HSET', key, 'state', state, 'finished', text(time), 'result', result)
  -- What failed may be tried again by hand; which rows a cancelled message held is asked later.
  if state == 'done' or (state == 'cancelled' and not job.items) then
    if not job.next then call('HDEL', key, 'wire') end
    call('DEL', P .. 'input:' .. job.id)
  else
    call('EXPIRE', P .. 'input:' .. job.id, ttl)
  end
  call('EXPIRE', key, ttl)
  -- Its worker goes on with what follows at once, or another one does, should that one die.
  if job.next then call('ZADD', P .. 'outbox', time, job.id) end
  if job.idem then call('EXPIRE', job.idem, ttl) end
  local stream = P .. 's:' .. job.id
  call('XADD', stream, '*', 'kind', 'end')
  call('EXPIRE', stream, ttl)
  call('XADD', P .. 'journal', 'MAXLEN', '~', JOURNAL, '*', 'id', job.id, 'state', state)
  call('EXPIRE', P .. 'journal', ttl)
  tally('ended:' .. state)
  if not job.items then tally('ended_items') end -- those of a batch count one by one
end
