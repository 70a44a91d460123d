-- Accept a job: its record, its message and its idempotency key, all or nothing.
-- KEYS: job, jobs, queue, input, idempotency key (or the job again where there is none)
-- ARGV: id, prefix of job keys, now, ttl, jobs to list, message, input ("" for none), fields...
-- Returns the id of the job: an earlier one's where the key was used before.
local job, jobs, queue, input, idem = unpack(KEYS)
local id, prefix, now, ttl, listed, message, aside = unpack(ARGV)

if idem ~= job then
  local earlier = redis.call('GET', idem)
  if earlier and redis.call('EXISTS', prefix .. earlier) == 1 then return earlier end
end
if redis.call('EXISTS', job) == 1 then return id end -- this very call, tried again

redis.call('HSET', job, unpack(ARGV, 8))
redis.call('EXPIRE', job, ttl)
if idem ~= job then redis.call('SET', idem, id, 'EX', ttl) end
if aside ~= '' then redis.call('SET', input, aside, 'EX', ttl) end
redis.call('ZADD', jobs, now, id)
redis.call('ZREMRANGEBYRANK', jobs, 0, -listed - 1)
redis.call('EXPIRE', jobs, ttl)
redis.call('LPUSH', queue, message)
return id
