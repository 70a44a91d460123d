-- Record how a job ended, once.
-- KEYS: job, stream, input
-- ARGV: id, fence ("" to end it whoever runs it), state, now, ttl, result, channel ("" for none)
-- Returns 1, or 0 if it had ended or runs under another fence, or -1 if there is no such job.
local job, stream, input = unpack(KEYS)
local id, fence, ending, now, ttl, result, channel = unpack(ARGV)

local state, attempt, idem, batch =
  unpack(redis.call('HMGET', job, 'state', 'attempt', 'idem', 'batch'))
if not state then return -1 end
if state ~= 'queued' and state ~= 'running' then return 0 end
if fence ~= '' and (state ~= 'running' or attempt ~= fence) then return 0 end

redis.call('HSET', job, 'state', ending, 'finished', now, 'result', result)
redis.call('EXPIRE', job, ttl)
redis.call('XADD', stream, '*', 'kind', 'end')
redis.call('EXPIRE', stream, ttl)
-- Whoever finds the message of cancelled items still has to read which items those were.
if fence ~= '' or not batch then redis.call('DEL', input) end
if idem then redis.call('EXPIRE', idem, ttl) end
if channel ~= '' then redis.call('PUBLISH', channel, id) end
return 1
