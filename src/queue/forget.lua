-- forget(age ms, limit, latest) -> n: dead letters older than that are gone for good. None once it is later
-- than `latest`: then the clock was set, and ages are nonsense.
local age, limit = assert(tonumber(ARGV[1])), assert(tonumber(ARGV[2]))
if now > assert(tonumber(ARGV[3])) then return 0 end
check_types()
local ids = redis.call('ZRANGEBYSCORE', DEAD, '-inf', now - age, 'LIMIT', 0, limit)
all('ZREM', DEAD, ids)
all('HDEL', MESSAGES, ids)
all('HDEL', HISTORY, ids)
all('HDEL', RECOVERED, ids)
return #ids
