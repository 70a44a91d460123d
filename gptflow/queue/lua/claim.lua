-- Take a job to run it.
-- KEYS: job, jobs
-- ARGV: id, worker, delivery, prefix of worker keys, now, ttl, deadline ("" for none), fields...
-- Returns {"run", fence, submitted}, or {why not}: "busy", "late", or the state it ended in.
local job, jobs = unpack(KEYS)
local id, worker, delivery, workers, now, ttl, deadline = unpack(ARGV)
local claimant = worker .. '#' .. delivery

local state, holder, claim = unpack(redis.call('HMGET', job, 'state', 'worker', 'claim'))
if not state then -- a message without a record, from a producer that only knows Celery
  redis.call('HSET', job, unpack(ARGV, 8))
  redis.call('ZADD', jobs, now, id)
  redis.call('EXPIRE', jobs, ttl)
elseif state == 'running' then
  if claim == claimant then -- the reply to this very call was lost
    return { 'run', redis.call('HGET', job, 'attempt'), redis.call('HGET', job, 'submitted') }
  end
  if redis.call('EXISTS', workers .. holder) == 1 then return { 'busy' } end
elseif state ~= 'queued' then
  return { state }
end
redis.call('EXPIRE', job, ttl)
if deadline ~= '' and tonumber(deadline) <= tonumber(now) then return { 'late' } end

local fence = redis.call('HINCRBY', job, 'attempt', 1)
redis.call('HSET', job, 'state', 'running', 'worker', worker, 'claim', claimant, 'started', now)
return { 'run', fence, redis.call('HGET', job, 'submitted') or now }
