-- Bring back what got lost: jobs whose worker fell silent, and doorbells that nobody answered.
--
-- KEYS: the sorted set of leases
-- ARGV: prefix, how many at most, seconds that a doorbell may take, seconds to keep a dead job,
--   seconds of the lease (0 for a worker's first call)
-- Returns {leases that ran out, doorbells lost, jobs that are dead now, delayed jobs enqueued}.
local _, most, patience, ttl, lease = unpack(ARGV)
local time = now()
local policy = read(P .. 'policy', 'pace', 'paced', 'ended', 'reaped')

-- Where no worker has called for so long, the server or the way to it was away, and nobody could
-- renew a lease. That is no crash of anybody's: all get the time to say that they live.
lease = tonumber(lease)
if lease > 0 and policy.reaped and time - tonumber(policy.reaped) > lease * 2 / 3 then
  for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'lease', '-inf', time)) do
    call('ZADD', P .. 'lease', time + lease, id)
    call('HSET', job_key(id), 'until', text(time + lease))
  end
end
call('HSET', P .. 'policy', 'reaped', text(time))

local released = release_delayed(time, most)

local lost = call('ZRANGEBYSCORE', P .. 'fed', '-inf', time - patience, 'LIMIT', 0, most)
for _, id in ipairs(lost) do
  local job = place_of(id)
  unmark_fed(job)
  if job.state == 'queued' then line_up(job) end
end
if #lost > 0 then tally('lost_doorbells', #lost) end

local function bury(job, crashes)
  local key = job_key(job.id)
  local worker = call('HGET', key, 'worker')
  call('HSET', key, 'log', table.concat(call('LRANGE', P .. 'log:' .. worker, 0, -1), '\n'))
  finish(job, 'dead', failure(job, 'dead', 'GF505',
    string.format('Job %s is dead: its worker died %d times while it ran.', job.id, crashes),
    string.format('`gptflow dead show %s` has what the worker said last.', job.id)), ttl)
  call('ZADD', P .. 'dead', time, job.id)
end

local expired, dead = call('ZRANGEBYSCORE', P .. 'lease', '-inf', time, 'LIMIT', 0, most), 0
for _, id in ipairs(expired) do
  call('ZREM', P .. 'lease', id)
  local job = place_of(id)
  if job.state == 'running' then
    -- A crash is no attempt: the job may not have been the one to blame.
    call('HINCRBY', job_key(id), 'attempt', -1)
    job.crashes = call('HINCRBY', job_key(id), 'crashes', 1)
    -- The rows of a batch are told apart by the worker that runs them one by one.
    if job.crashes >= DEAD_AFTER and not job.items then
      bury(job, job.crashes)
      dead = dead + 1
    else
      requeue(job)
    end
  end
end
call('ZREMRANGEBYSCORE', P .. 'dead', '-inf', time - ttl)
if #expired > 0 then tally('expired_leases', #expired) end

-- How many items end in a second, over the last ones, for telling callers when to come back.
local ended = tonumber(call('HGET', P .. 'totals', 'ended_items') or 0)
local passed = time - tonumber(policy.paced or 0)
if passed >= 1 then
  local pace = math.max(0, ended - tonumber(policy.ended or 0)) / passed
  if policy.pace and passed < 60 then
    local keep = math.exp(-passed / 10)
    pace = keep * tonumber(policy.pace) + (1 - keep) * pace
  end
  call('HSET', P .. 'policy', 'pace', string.format('%.3f', pace), 'paced', text(time), 'ended', ended)
end

if #lost + #expired + released > 0 then call('PUBLISH', P .. 'wake', '') end
return { #expired, #lost, dead, released }
